"""What happens to an image: it is built, named, pushed, pulled, run, deployed, pinned."""
