"""`leukoscope predict`: answers for whole folders and archives, in a table that survives interruption."""
