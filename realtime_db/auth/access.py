from realtime_db.auth.policies import Access, CheckFailed, WriteAccess

__all__ = ["Access", "CheckFailed", "WriteAccess"]
