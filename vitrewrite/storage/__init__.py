"""Files of bytes, JSON and tensors, with hashes of what is in them."""
