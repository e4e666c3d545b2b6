"What the documentation site needs beside nbdev; nothing else imports it."
import re

def hide_directives(cell):
    "Remove nbdev's directives from text: it writes them into the summary of each chapter, where a reader would see them"
    if cell.cell_type == 'markdown': cell.source = re.sub(r'^(#\|.*\n)+\s*', '', cell.source)
