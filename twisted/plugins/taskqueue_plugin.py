"""Makes ``taskqueue`` a command of ``twistd``."""

from twisted.application.service import ServiceMaker

taskqueue = ServiceMaker("taskqueue", "tq_node.node.service", "A distributed, fault-tolerant task queue.", "taskqueue")
