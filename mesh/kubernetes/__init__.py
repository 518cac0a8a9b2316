"""The mesh in Kubernetes: the names it uses there, its policies as objects, and the sidecar as an admission patch.

    names        P   labels, annotations, API group and names of containers and volumes, once
    structural   P   a policy Struct as a structural schema         rules        P   what CEL checks beside it
    crds             the CustomResourceDefinitions; `python -m mesh.kubernetes.crds` writes them
    objects      P   an object as a policy document, and the faults of a set told to its objects
    conditions   P   what stands in an object's status, and the Event that says so
    fragment     P   the sidecar as one file of YAML                injection    P   a pod in, a JSON patch out
    admission    P   a review in, an answer out
    api          IO  the one door to the API server                 watch        IO  list and watch of one resource

What the control plane does with them is in `mesh/control/`: `injector.py` and `policy_sources.py`.
"""
