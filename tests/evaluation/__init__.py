"""How good scores are: the methods of this library and of others, on the same trainings."""
