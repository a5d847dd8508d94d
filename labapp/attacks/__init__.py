"""The wrong things, done for real to this lab's own objects, and undone again."""
