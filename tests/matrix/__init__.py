"""Every method on every architecture: what works, and why not what does not."""
