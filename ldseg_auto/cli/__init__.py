"""The commands: each file parses its arguments and calls one function. nnU-Net and torch are imported only then."""
