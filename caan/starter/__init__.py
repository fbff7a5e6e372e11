"""The face network and head that ship with the package, and the code that trains them."""
