"""Gradients of single samples from one backward pass over a batch, layer by layer.

A layer's weight gradient for one sample follows from the layer's input and the gradient of its output. `RULES` computes
it for convolutions, linear layers and norms. A check makes sure that the result is right: `Layers.sums` returns `None`
for a model or forward pass that it cannot handle, and the caller then processes samples one by one."""
from collections import Counter
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm as TimmLayerNorm
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['layers_of', 'Layers']

NARROW = 16  # a convolution with fewer input channels is computed by one matrix product for its whole kernel


# A rule is a function of a layer m, its input x and the gradient g of its output, both for n samples (n*r rows), and a
# function f. It returns the sums over samples of f(gradient of the weight) and f(gradient of the bias).

def _linear(m, x, g, n, f):
    x, g = x.reshape(n, -1, x.shape[-1]), g.reshape(n, -1, g.shape[-1])
    if x.shape[1] == 1:  # the gradient of a single row is an outer product, and so is its square or absolute value
        w = f(g[:, 0]).T @ f(x[:, 0])
    else: w = f(torch.bmm(g.transpose(1, 2), x)).sum(0)
    return w, f(g.sum(1)).sum(0)


def _conv(m, x, g, n, f):
    bias = None if m.bias is None else _per_channel(g, n, f)
    if m.groups > 1: return _grouped_conv_weight(m, x, g, n, f), bias
    if any(m.padding): x = F.pad(x, [p for q in reversed(m.padding) for p in (q, q)])
    x, g = x.movedim(1, -1), g.movedim(1, -1)  # channels last
    size = g.shape[1:-1]
    g = g.reshape(n, -1, g.shape[-1])
    weight = _narrow_conv_weight if x.shape[-1] < NARROW else _conv_weight
    return weight(m, x, g, size, n, f), bias


def _grouped_conv_weight(m, x, g, n, f):
    rows, zeros = len(x)//n, [0]*len(m.kernel_size)
    total = 0
    for i in range(0, len(x), rows):
        _, grad, _ = torch.ops.aten.convolution_backward(
            g[i:i + rows], x[i:i + rows], m.weight.detach(), None, m.stride, m.padding, m.dilation, False, zeros,
            m.groups, [False, True, False])
        total = total + f(grad)
    return total


def _narrow_conv_weight(m, x, g, size, n, f):
    "One matrix product for all positions of the kernel, as many narrow ones would be slow"
    x = x.contiguous()
    b, *steps, c = x.stride()
    moves = [s*o for s, o in zip(steps, m.stride)]
    places = [s*k for s, k in zip(steps, m.dilation)]
    windows = x.as_strided((len(x), *size, *m.kernel_size, x.shape[-1]), (b, *moves, *places, c))
    w = f(torch.bmm(windows.reshape(n, g.shape[1], -1).transpose(1, 2), g)).sum(0).T
    return w.reshape(len(w), *m.kernel_size, -1).movedim(-1, 1)


def _conv_weight(m, x, g, size, n, f):
    "A matrix product for each position of the kernel"
    grads = []
    for at in product(*map(range, m.kernel_size)):
        place = [slice(o*k, o*k + s*(t - 1) + 1, s) for o, k, s, t in zip(at, m.dilation, m.stride, size)]
        view = x[(slice(None), *place)].reshape(n, g.shape[1], -1)
        grads.append(f(torch.bmm(g.transpose(1, 2), view)).sum(0))
    return torch.stack(grads, 1).transpose(1, 2).reshape(m.weight.shape)


def _per_channel(t, n, f):
    "Sum `(n*r, C, ...)` within each sample and channel, apply f, and sum over samples"
    return f(t.reshape(n, -1, t.shape[1], t[0, 0].numel()).sum((1, 3))).sum(0)


def _batch_norm(m, x, g, n, f):
    shape = (1, -1) + (1,)*(x.ndim - 2)
    centred = x - m.running_mean.view(shape)
    w = _per_channel(centred.mul_(g), n, f)
    return w*f((m.running_var + m.eps).rsqrt()), _per_channel(g, n, f)


def _group_norm(m, x, g, n, f):
    normalised = F.group_norm(x, m.num_groups, eps=m.eps)
    return _per_channel(normalised.mul_(g), n, f), _per_channel(g, n, f)


def _layer_norm(m, x, g, n, f):
    normalised = F.layer_norm(x, m.normalized_shape, eps=m.eps)
    return tuple(f(t.reshape(n, -1, *m.normalized_shape).sum(1)).sum(0) for t in (normalised*g, g))


# keys are `forward` functions, not classes, so that a subclass that overrides `forward` has no rule
RULES = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _conv,
    nn.Conv2d.forward: _conv,
    nn.Conv3d.forward: _conv,
    _BatchNorm.forward: _batch_norm,
    nn.SyncBatchNorm.forward: _batch_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.LayerNorm.forward: _layer_norm,
    TimmLayerNorm.forward: _layer_norm,
}


def layers_of(
    part:nn.Module, # In eval mode
)->'Layers|None': # `None` if samples must be processed one by one
    "The layers of a module, if there is a rule for all of its parameters and no parameter belongs to two layers"
    rules, seen = {}, set()
    for m in part.modules():
        own = {k:p for k, p in m._parameters.items() if p is not None}
        if not own: continue
        rule = _rule(m, own)
        if rule is None or any(id(p) in seen for p in own.values()): return None
        seen |= {id(p) for p in own.values()}
        rules[m] = rule
    return Layers(rules)


def _rule(m, own):
    "The rule of a layer with the parameters `own`, or `None`"
    rule = RULES.get(type(m).forward)
    if rule is None or 'forward' in vars(m) or not own.keys() <= {'weight', 'bias'}: return None
    if any(p.dtype not in (torch.float32, torch.float64) for p in own.values()): return None
    if rule is _conv and (m.padding_mode != 'zeros' or isinstance(m.padding, str)): return None
    return rule


def _uses(out)->Counter:
    "Count the uses of each parameter, by id, in the graph of `out`"
    uses: Counter[int] = Counter()
    seen, todo = {out.grad_fn}, [out.grad_fn]
    while todo:
        for node, _ in todo.pop().next_functions:
            if hasattr(node, 'variable'): uses[id(node.variable)] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return uses


class _Call:
    "One call of a layer: its input, and the edge of the graph that gives the gradient of its output"
    def __init__(self, args, out):
        # a rule needs a single input and an output with a graph
        self.usable = len(args) == 1 and torch.is_tensor(out) and out.requires_grad
        if not self.usable: return
        self.x, self.version = args[0].detach(), args[0]._version
        self.edge = get_gradient_edge(out)

    def fits(self, m, rule, n):
        "Whether the rule of layer m applies to n samples: the input is unchanged and has whole rows for each sample"
        if not self.usable or self.x._version != self.version: return False
        if len(self.x) % n or self.x.ndim < 2: return False
        return rule is not _conv or self.x.ndim == m.weight.ndim


class Layers:
    "The layers of a module, and sums over a batch of `f` (square or absolute value) of each sample's gradient"
    def __init__(self,
        rules:dict, # Layer -> its rule, from `layers_of`
    ):
        self.rules = rules
        self.verified = False  # whether a gradient has been compared with that of the sample alone

    def sums(self,
        outputs:Callable, # Function of a list of tensors, batch first, that returns a tensor with a graph, batch first
        cotangents:Callable, # Function of this tensor and the list that returns the vectors of vector-Jacobian products
        batch:list, # Tensors, batch first; at least two samples until `verified`
        f:Callable, # Multiplicative: f(uv) = f(u)f(v)
    )->dict|None: # id of a parameter -> sum; `None`: samples must be processed one by one
        """Sum `f` of the gradients of all samples.

        Returns `None` unless each layer is called at most once, with a whole number of rows per sample, and each
        parameter is used in this call only. The first time, the last sample's gradient must also equal that of the
        sample alone, which detects nets that mix samples or reorder rows."""
        if torch.is_autocast_enabled(batch[0].device.type): return None
        out, calls = self._forward(outputs, batch)
        if not torch.is_tensor(out) or not out.requires_grad or not out.ndim or len(out) != len(batch[0]): return None
        if not self._can_take_apart(out, calls, len(batch[0])): return None
        called = {m:found[0] for m, found in calls.items() if found}
        if not called: return None

        cots = list(cotangents(out, batch))
        total: dict[int, torch.Tensor] = {}
        edges = [call.edge for call in called.values()]
        order = self._order(cots)
        for k, i in enumerate(order):
            more = k + 1 < len(cots)
            grads = list(torch.autograd.grad(out, edges, cots[i], retain_graph=more, allow_unused=True))
            if any(g is None for g in grads): return None
            if not self.verified and not self._verify(outputs, batch, cots[i], called, grads, f): return None
            self._add(total, called, grads, len(batch[0]), f)
        return total

    def _forward(self, outputs, batch):
        "The output, and the calls of each layer in this forward pass"
        calls = {m:[] for m in self.rules}
        hooks = [m.register_forward_hook(lambda m, args, out: calls[m].append(_Call(args, out))) for m in self.rules]
        try: out = outputs(batch)
        finally:
            for h in hooks: h.remove()
        return out, calls

    def _can_take_apart(self, out, calls, n):
        uses = _uses(out)
        for m, found in calls.items():
            if len(found) > 1: return False
            if any(uses[id(p)] != len(found) for p in m._parameters.values() if p is not None): return False
            if not all(call.fits(m, self.rules[m], n) for call in found): return False
        return True

    def _order(self, cots):
        "The order of cotangents: until `verified`, that with the largest values for the last sample comes first"
        if self.verified: return range(len(cots))
        return sorted(range(len(cots)), key=lambda i: -cots[i][-1].abs().sum().item())

    def _add(self, total, called, grads, n, f):
        for j, (m, call) in enumerate(called.items()):
            g, grads[j] = grads[j], None  # so that its memory is freed after this layer
            for p, s in zip((m.weight, m.bias), self.rules[m](m, call.x, g, n, f)):
                if p is not None: total[id(p)] = total[id(p)] + s if id(p) in total else s

    def _verify(self, outputs, batch, cot, called, grads, f):
        "Compare the last sample's gradient with that of the sample alone"
        n = len(batch[0])
        weights = [p for m in called for p in (m.weight, m.bias) if p is not None]
        alone = torch.autograd.grad(outputs([t[-1:] for t in batch]), weights, cot[-1:], allow_unused=True)
        if any(a is None for a in alone): return False
        alone = [f(a) for a in alone]
        ours = []
        for (m, call), g in zip(called.items(), grads):
            rows = len(call.x)//n
            sums = self.rules[m](m, call.x[-rows:], g[-rows:], 1, f)
            ours += [s for p, s in zip((m.weight, m.bias), sums) if p is not None]
        size = torch.stack([a.norm() for a in alone]).norm()
        # in float32, rounding (TF32 on GPUs) changes the sign of a few inputs of ReLUs in a deep net
        close = 1e-4 if cot.dtype == torch.float64 else 1e-2
        equal = all((a - b).norm() <= close*b.norm() + 1e-6*size for a, b in zip(ours, alone))
        self.verified = bool(size > 0) and bool(equal)
        return self.verified
