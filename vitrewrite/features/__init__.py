"""The frozen part of a model, apart from the trained one: what it yields, once for each image.

| file | what it holds |
|---|---|
| `probe` | what each step of a program reads, and which are random, on meta |
| `halves` | modules whose reading is told from what they train |
| `names` | what identifies a value: the program that makes it |
| `cut` | the two parts of a program, and the values that cross |
| `store` | these values on disk |
"""
