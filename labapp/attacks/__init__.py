"""The wrong things of the chapter, done for real to this lab's own objects, and undone again.

Each step of an image's journey has one. What an attack changes is in the journal before it happens,
and the undo puts it back, whatever became of the attacker. A delivery meets them unannounced.
"""
