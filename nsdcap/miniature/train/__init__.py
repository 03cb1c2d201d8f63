"""How the miniature's models were trained: one seeded command each, its log beside the weights.

python -m nsdcap.miniature.train.clip
python -m nsdcap.miniature.train.autoencoder
python -m nsdcap.miniature.train.unet        (needs the two before)
python -m nsdcap.miniature.train.blip
python -m nsdcap.miniature.train.judge
"""
