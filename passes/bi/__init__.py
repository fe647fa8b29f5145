"""Passes whose matrices have few bits a number."""
