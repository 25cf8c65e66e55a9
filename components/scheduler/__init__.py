"""When: the queue, its order, admission and deadlines. It shows the router windows of its queue."""
