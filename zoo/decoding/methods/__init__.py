"""The methods of decoding, a file each; whoever registers itself in one is found."""
