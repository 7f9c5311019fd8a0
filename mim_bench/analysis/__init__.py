"""From records to differences, tables, figures and the report; imports no torch."""
