"""Reads the table of tasks by settings that a sweep writes."""


def read_grid(path):
    """The cells of the table of tasks by settings: by the first column, then by the head."""
    head, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in path.read_text().split("\n\n")[0].splitlines()
    ]
    return {line[0]: dict(zip(head[1:], line[1:], strict=True)) for line in lines}
