"""One file, or small folder, per transformation; the file name is the name in the language."""

if __name__ != "vitrewrite.passes":
    message = "import passes as vitrewrite.passes, so that no file loads under two names"
    raise ImportError(message)
