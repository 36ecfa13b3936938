"""What makes the site of the documentation: `python -m docs.site` prepares the pages, has Zensical
build them, and checks what comes out.
"""
