"""PixelSNAIL: its layers, the network, and the network a position at a time."""
