"""What a program for another library uses, and what of that is here: what ``millstream port`` prints and changes."""
