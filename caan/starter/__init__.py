"""The small face network and head that ship with the package, and the recipe that made them."""
