"""Files that several readers of data sets read and write."""
