"""The environments' own machinery; ``privguard.environments`` names them.

``atari`` and ``car_racing`` wrap games, ``frame_stacks`` stores their states. ``simulators`` puts
MuJoCo into a state (``mujoco_states``) and steps it; ``pose_rendering`` and ``poses`` draw it.
"""
