"""What of an annotation server needs no server: requests, names, labels, segmentations in archives."""
