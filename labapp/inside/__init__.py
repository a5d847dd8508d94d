"""What is in an image: layers, files, packages, secrets, known fixes and its bill of materials."""
