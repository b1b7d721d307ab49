"""The options: declared once in `table`, read and refused in `reading`."""
