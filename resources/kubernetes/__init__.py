"""What Kubernetes is asked for and what it says, whoever asks: compute, the launcher of runs, the sensor of orphans.

cluster.py    which cluster, namespace and image, what every pod has besides; is it there
pods.py       what a declaration means for a pod, as plain data; whose a pod is
fate.py       what has become of a pod, told from what the API says of it
watchdog.py   Dagster's Pipes client, under a watch that ends
launcher.py   a pod for each run, with what its assets declare
"""
