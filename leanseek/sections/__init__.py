"""Sections: all settings of a recipe, each group of them a class, in files by what they are for."""
