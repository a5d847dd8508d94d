"""A registry that controls who may push and who may pull: with accounts, tokens and TLS."""
