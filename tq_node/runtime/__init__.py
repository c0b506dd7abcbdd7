"""Drivers that join the pure cores to clock, store and wire, in one package for each subject.

``replication`` drives the node's copies, ``tasks`` serves the partitions led here, ``routing``
sends each call to the node that leads and implements ``facade.TaskQueue``, ``control`` drives
Raft and the cluster map, ``bootstrap`` founds and joins.

All run in the reactor thread. The cores decide the rules; nothing here knows HTTP or handlers."""
