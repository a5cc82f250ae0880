"""The figures, one module each: `draw(tables_dir)` gives a figure, `style.save` writes it."""
