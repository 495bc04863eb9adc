"""What every data job stands on: stages, engines, shuffles, inputs."""
