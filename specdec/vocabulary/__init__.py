"""Two vocabularies side by side: tokens as bytes, what both have, text from one to the other."""
