"""The four parts of LDSegNet and the network that joins them; 2D and 3D from one code path."""
