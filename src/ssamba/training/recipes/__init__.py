"""Recipes: how their values are declared and checked, the groups that several kinds share, and the YAML files."""
