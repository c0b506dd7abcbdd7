"""What the console knows of a cluster. PURE: no clock, no network, no Textual.

``cluster_view.reduce`` folds one observation of one node into a ``ClusterView``, the only value that screens draw from;
``health`` judges a view, ``discovery`` says which addresses to watch, ``event_log`` keeps the latest events and ``task_window``
the rows of a list that is paged. A view is immutable, and an observation brings its time with it.
"""
