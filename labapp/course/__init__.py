"""The course: exercises and their checks, the coach, receipts, progress, class reports, pages."""
