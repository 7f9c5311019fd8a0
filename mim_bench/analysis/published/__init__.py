"""Numbers that papers print, and how their settings differ from ours."""
