"""What becomes of a run when its processes die; `trap` makes them slow or mortal, for these tests alone."""
