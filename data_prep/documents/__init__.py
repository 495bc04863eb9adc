"""Reading documents: files, formats, fields."""
