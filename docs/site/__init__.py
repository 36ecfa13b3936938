"""What makes the site of the documentation: hooks of MkDocs, the finder, the check of the built pages."""
