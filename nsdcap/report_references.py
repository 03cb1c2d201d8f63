"""What the methods text cites."""

from __future__ import annotations

# key -> (as cited, as listed)
REFERENCES = {
    "allen": (
        "Allen et al., 2022",
        "Allen, E. J., St-Yves, G., Wu, Y., et al. (2022). A massive 7T fMRI dataset to bridge "
        "cognitive neuroscience and artificial intelligence. Nature Neuroscience, 25, 116-126. "
        "doi:10.1038/s41593-021-00962-x",
    ),
    "glmsingle": (
        "Prince et al., 2022",
        "Prince, J. S., Charest, I., Kurzawski, J. W., et al. (2022). Improving the accuracy of "
        "single-trial fMRI response estimates using GLMsingle. eLife, 11, e77599. "
        "doi:10.7554/eLife.77599",
    ),
    "coco": (
        "Lin et al., 2014",
        "Lin, T.-Y., Maire, M., Belongie, S., et al. (2014). Microsoft COCO: Common objects in "
        "context. ECCV, 740-755. doi:10.1007/978-3-319-10602-1_48",
    ),
    "coco captions": (
        "Chen et al., 2015",
        "Chen, X., Fang, H., Lin, T.-Y., et al. (2015). Microsoft COCO captions: Data "
        "collection and evaluation server. arXiv:1504.00325",
    ),
    "takagi caption": (
        "Takagi & Nishimoto, 2023a",
        "Takagi, Y., & Nishimoto, S. (2023a). Visual experience reconstruction from human brain "
        "activity via image captions [in Japanese]. Annual Meeting of the Association for "
        "Natural Language Processing (NLP2023).",
    ),
    "takagi": (
        "Takagi & Nishimoto, 2023b",
        "Takagi, Y., & Nishimoto, S. (2023b). High-resolution image reconstruction with latent "
        "diffusion models from human brain activity. CVPR, 14453-14463. "
        "doi:10.1109/CVPR52729.2023.01389",
    ),
    "blip": (
        "Li et al., 2022",
        "Li, J., Li, D., Xiong, C., & Hoi, S. (2022). BLIP: Bootstrapping language-image "
        "pre-training for unified vision-language understanding and generation. ICML, PMLR 162, "
        "12888-12900.",
    ),
    "bert": (
        "Devlin et al., 2019",
        "Devlin, J., Chang, M.-W., Lee, K., & Toutanova, K. (2019). BERT: Pre-training of deep "
        "bidirectional transformers for language understanding. NAACL, 4171-4186. "
        "doi:10.18653/v1/N19-1423",
    ),
    "rombach": (
        "Rombach et al., 2022",
        "Rombach, R., Blattmann, A., Lorenz, D., Esser, P., & Ommer, B. (2022). High-resolution "
        "image synthesis with latent diffusion models. CVPR, 10684-10695. "
        "doi:10.1109/CVPR52688.2022.01042",
    ),
    "clip": (
        "Radford et al., 2021",
        "Radford, A., Kim, J. W., Hallacy, C., et al. (2021). Learning transferable visual "
        "models from natural language supervision. ICML, PMLR 139, 8748-8763.",
    ),
    "ridge": (
        "Hoerl & Kennard, 1970",
        "Hoerl, A. E., & Kennard, R. W. (1970). Ridge regression: Biased estimation for "
        "nonorthogonal problems. Technometrics, 12(1), 55-67. "
        "doi:10.1080/00401706.1970.10488634",
    ),
    "sdedit": (
        "Meng et al., 2022",
        "Meng, C., He, Y., Song, Y., et al. (2022). SDEdit: Guided image synthesis and editing "
        "with stochastic differential equations. ICLR.",
    ),
    "ddim": (
        "Song et al., 2021",
        "Song, J., Meng, C., & Ermon, S. (2021). Denoising diffusion implicit models. ICLR.",
    ),
    "guidance": (
        "Ho & Salimans, 2022",
        "Ho, J., & Salimans, T. (2022). Classifier-free diffusion guidance. arXiv:2207.12598",
    ),
    "hemerik": (
        "Hemerik & Goeman, 2018",
        "Hemerik, J., & Goeman, J. (2018). Exact testing with random permutations. TEST, 27, "
        "811-825. doi:10.1007/s11749-017-0571-1",
    ),
    "signs": (
        "Efron, 1969",
        "Efron, B. (1969). Student's t-test under symmetry conditions. Journal of the American "
        "Statistical Association, 64(328), 1278-1302.",
    ),
    "simes": (
        "Simes, 1986",
        "Simes, R. J. (1986). An improved Bonferroni procedure for multiple tests of "
        "significance. Biometrika, 73(3), 751-754. doi:10.1093/biomet/73.3.751",
    ),
    "fdr": (
        "Benjamini & Hochberg, 1995",
        "Benjamini, Y., & Hochberg, Y. (1995). Controlling the false discovery rate: A "
        "practical and powerful approach to multiple testing. Journal of the Royal Statistical "
        "Society B, 57(1), 289-300. doi:10.1111/j.2517-6161.1995.tb02031.x",
    ),
    "bootstrap": (
        "Efron & Tibshirani, 1993",
        "Efron, B., & Tibshirani, R. J. (1993). An introduction to the bootstrap. Chapman & Hall.",
    ),
    "binomial": (
        "Clopper & Pearson, 1934",
        "Clopper, C. J., & Pearson, E. S. (1934). The use of confidence or fiducial limits "
        "illustrated in the case of the binomial. Biometrika, 26(4), 404-413. "
        "doi:10.1093/biomet/26.4.404",
    ),
    "bleu": (
        "Papineni et al., 2002",
        "Papineni, K., Roukos, S., Ward, T., & Zhu, W.-J. (2002). BLEU: A method for automatic "
        "evaluation of machine translation. ACL, 311-318. doi:10.3115/1073083.1073135",
    ),
    "sacrebleu": (
        "Post, 2018",
        "Post, M. (2018). A call for clarity in reporting BLEU scores. WMT, 186-191. "
        "doi:10.18653/v1/W18-6319",
    ),
    "meteor": (
        "Denkowski & Lavie, 2014",
        "Denkowski, M., & Lavie, A. (2014). Meteor universal: Language specific translation "
        "evaluation for any target language. WMT, 376-380. doi:10.3115/v1/W14-3348",
    ),
    "rouge": (
        "Lin, 2004",
        "Lin, C.-Y. (2004). ROUGE: A package for automatic evaluation of summaries. Text "
        "Summarization Branches Out, 74-81.",
    ),
    "cider": (
        "Vedantam et al., 2015",
        "Vedantam, R., Zitnick, C. L., & Parikh, D. (2015). CIDEr: Consensus-based image "
        "description evaluation. CVPR, 4566-4575. doi:10.1109/CVPR.2015.7299087",
    ),
    "spice": (
        "Anderson et al., 2016",
        "Anderson, P., Fernando, B., Johnson, M., & Gould, S. (2016). SPICE: Semantic "
        "propositional image caption evaluation. ECCV, 382-398. "
        "doi:10.1007/978-3-319-46454-1_24",
    ),
    "clipscore": (
        "Hessel et al., 2021",
        "Hessel, J., Holtzman, A., Forbes, M., Le Bras, R., & Choi, Y. (2021). CLIPScore: A "
        "reference-free evaluation metric for image captioning. EMNLP, 7514-7528. "
        "doi:10.18653/v1/2021.emnlp-main.595",
    ),
    "ssim": (
        "Wang et al., 2004",
        "Wang, Z., Bovik, A. C., Sheikh, H. R., & Simoncelli, E. P. (2004). Image quality "
        "assessment: From error visibility to structural similarity. IEEE Transactions on Image "
        "Processing, 13(4), 600-612. doi:10.1109/TIP.2003.819861",
    ),
    "alexnet": (
        "Krizhevsky et al., 2012",
        "Krizhevsky, A., Sutskever, I., & Hinton, G. E. (2012). ImageNet classification with "
        "deep convolutional neural networks. NeurIPS, 25.",
    ),
    "inception": (
        "Szegedy et al., 2016",
        "Szegedy, C., Vanhoucke, V., Ioffe, S., Shlens, J., & Wojna, Z. (2016). Rethinking the "
        "Inception architecture for computer vision. CVPR, 2818-2826. doi:10.1109/CVPR.2016.308",
    ),
    "efficientnet": (
        "Tan & Le, 2019",
        "Tan, M., & Le, Q. V. (2019). EfficientNet: Rethinking model scaling for convolutional "
        "neural networks. ICML, PMLR 97, 6105-6114.",
    ),
    "swav": (
        "Caron et al., 2020",
        "Caron, M., Misra, I., Mairal, J., et al. (2020). Unsupervised learning of visual "
        "features by contrasting cluster assignments. NeurIPS, 33, 9912-9924.",
    ),
    "numpy": (
        "Harris et al., 2020",
        "Harris, C. R., Millman, K. J., van der Walt, S. J., et al. (2020). Array programming "
        "with NumPy. Nature, 585, 357-362. doi:10.1038/s41586-020-2649-2",
    ),
    "scipy": (
        "Virtanen et al., 2020",
        "Virtanen, P., Gommers, R., Oliphant, T. E., et al. (2020). SciPy 1.0: Fundamental "
        "algorithms for scientific computing in Python. Nature Methods, 17, 261-272. "
        "doi:10.1038/s41592-019-0686-2",
    ),
    "sklearn": (
        "Pedregosa et al., 2011",
        "Pedregosa, F., Varoquaux, G., Gramfort, A., et al. (2011). Scikit-learn: Machine "
        "learning in Python. Journal of Machine Learning Research, 12, 2825-2830.",
    ),
    "torch": (
        "Paszke et al., 2019",
        "Paszke, A., Gross, S., Massa, F., et al. (2019). PyTorch: An imperative style, "
        "high-performance deep learning library. NeurIPS, 32.",
    ),
    "transformers": (
        "Wolf et al., 2020",
        "Wolf, T., Debut, L., Sanh, V., et al. (2020). Transformers: State-of-the-art natural "
        "language processing. EMNLP: System Demonstrations, 38-45. "
        "doi:10.18653/v1/2020.emnlp-demos.6",
    ),
    "diffusers": (
        "von Platen et al., 2022",
        "von Platen, P., Patil, S., Lozhkov, A., et al. (2022). Diffusers: State-of-the-art "
        "diffusion models. github.com/huggingface/diffusers",
    ),
    "mne": (
        "Gramfort et al., 2013",
        "Gramfort, A., Luessi, M., Larson, E., et al. (2013). MEG and EEG data analysis with "
        "MNE-Python. Frontiers in Neuroscience, 7, 267. doi:10.3389/fnins.2013.00267",
    ),
    "nilearn": (
        "Abraham et al., 2014",
        "Abraham, A., Pedregosa, F., Eickenberg, M., et al. (2014). Machine learning for "
        "neuroimaging with scikit-learn. Frontiers in Neuroinformatics, 8, 14. "
        "doi:10.3389/fninf.2014.00014",
    ),
    "freesurfer": (
        "Fischl, 2012",
        "Fischl, B. (2012). FreeSurfer. NeuroImage, 62(2), 774-781. "
        "doi:10.1016/j.neuroimage.2012.01.021",
    ),
}


class Citations:
    """Called with a reference's key gives it as cited, and remembers it for the list."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, key: str) -> str:
        self._used.add(key)
        return REFERENCES[key][0]

    def listed(self) -> list[str]:
        """All that were cited, by name."""
        return sorted(REFERENCES[key][1] for key in self._used)
