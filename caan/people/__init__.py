"""Who is who in a video: tracks of faces, joined to people."""
