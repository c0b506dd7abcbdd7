"""What the console knows of a cluster. PURE: no clock, no network, no Textual.

``cluster_view.reduce`` makes the next ``ClusterView``, from which alone screens draw, out of the
last one and an observation of a node. Views are immutable; an observation brings its own time."""
