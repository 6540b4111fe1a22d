"""Programs that build what the repository ships: the embedded model. Not part of the installed package."""
