"""The words that web, tasks and engine share: pure pydantic, no imports of ours."""
