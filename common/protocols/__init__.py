"""How a prediction is judged: landmark errors, verification, pairs, angles.

Only arrays come in: no files of data sets, no networks' names. May import: the ground."""
