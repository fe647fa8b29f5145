"""README and pages do what they say: every block of code is run, and what it prints is compared.

    python -m tests.documentation [PAGE...]

| file | what it holds |
|---|---|
| `blocks` | the blocks of a page, and what each is: commands, a spec, Python, or none of these |
| `output` | whether printed and shown text are the same, up to noise in figures |
| `stage` | the folder in which a page runs: data, files, and what stands for what is not there |
| `running` | commands and snippets, run and judged |
| `first_hour` | the commands of README's first hour, in an environment of their own |
"""
