"""A server that lets images leave early: queues by depth, deadlines, honest overload, a guard against drift."""
